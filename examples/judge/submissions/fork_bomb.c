// As many processes as it can get, for ever.
#include <unistd.h>

int main(void) {
    for (;;)
        fork();
}

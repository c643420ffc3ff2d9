// Uses no CPU and never ends: the limit of wall-clock time.
#include <unistd.h>

int main(void) {
    for (;;)
        pause();
}

// Prints without end: the limit of output is the largest file it may write, so the kernel ends it by SIGXFSZ.
#include <stdio.h>

int main(void) {
    for (;;)
        puts("6");
}

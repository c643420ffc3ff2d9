// Ignores every signal that can be ignored, and burns its CPU: the limit of CPU time.
#include <signal.h>

int main(void) {
    for (int number = 1; number < 65; number++)
        signal(number, SIG_IGN);
    for (;;)
        ;
}

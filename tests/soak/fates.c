// fates FATE: one of the ways in which a program ends badly. Small, static, fast to start.
#define _GNU_SOURCE
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int is(const char *word, const char *fate) { return strcmp(word, fate) == 0; }

static void ignore_signals(void) {
    for (int number = 1; number < 65; number++)
        signal(number, SIG_IGN);
}

int main(int count, char **words) {
    const char *fate = words[1];
    if (is(fate, "memory"))
        for (;;)
            memset(malloc(1 << 20), 1, 1 << 20);
    if (is(fate, "memory_of_child")) {
        if (fork() == 0)
            for (;;)
                memset(malloc(1 << 20), 1, 1 << 20);
        for (;;)
            pause();
    }
    if (is(fate, "spin")) {
        ignore_signals();
        for (;;)
            ;
    }
    if (is(fate, "fork_bomb"))
        for (;;)
            fork();
    if (is(fate, "flood"))
        for (;;)
            if (write(1, fate, 5) < 0)
                return 1;
    if (is(fate, "daemons")) { // three grandchildren in sessions of their own, deaf, with standard output open
        int ready[2];
        char bytes[3];
        if (pipe(ready) < 0)
            return 1;
        for (int i = 0; i < 3; i++)
            if (fork() == 0) {
                setsid();
                if (fork() == 0) {
                    ignore_signals();
                    if (write(ready[1], "!", 1) < 0)
                        return 1;
                    for (;;)
                        pause();
                }
                _exit(0);
            }
        for (int i = 0; i < 3; i++)
            if (read(ready[0], bytes, 1) < 0)
                return 1;
        return 0;
    }
    if (is(fate, "stopped")) {
        for (int i = 0; i < 2; i++) {
            pid_t child = fork();
            if (child == 0)
                for (;;)
                    raise(SIGSTOP);
            kill(child, SIGSTOP);
        }
        return 0;
    }
    if (is(fate, "signal"))
        raise(SIGSEGV);
    for (;;)
        pause();
}

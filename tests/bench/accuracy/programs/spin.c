// spin MILLISECONDS CHILDREN: burns so much CPU time in one process (CHILDREN = 0) or in CHILDREN processes, of which
// as many run at a time as there are CPUs times four, and prints the nanoseconds of CPU time it knows of.
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long long now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void spin(long long nanoseconds) {
    volatile unsigned work = 0;
    while (now(CLOCK_PROCESS_CPUTIME_ID) < nanoseconds)
        for (int i = 0; i < 20000; i++)
            work += i;
}

int main(int count, char **words) {
    long long total = atoll(words[1]) * 1000000;
    int children = atoi(words[2]), running = 0;
    if (children == 0)
        spin(total);
    for (int i = 0; i < children; i++) {
        if (running == 8) {
            wait(NULL);
            running--;
        }
        running++;
        if (fork() == 0) {
            spin(total / children);
            _exit(0);
        }
    }
    while (wait(NULL) > 0)
        ;
    struct rusage below;
    getrusage(RUSAGE_CHILDREN, &below);
    long long known = (below.ru_utime.tv_sec + below.ru_stime.tv_sec) * 1000000000LL +
                      (below.ru_utime.tv_usec + below.ru_stime.tv_usec) * 1000LL + now(CLOCK_PROCESS_CPUTIME_ID);
    printf("%lld\n", known);
    return 0;
}

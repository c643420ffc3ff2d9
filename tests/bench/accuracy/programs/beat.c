// beat PROCESSES: never ends. Every process writes into the file `beats`, as three numbers of 8 bytes, when it started, when
// it was last alive (both CLOCK_MONOTONIC) and its CPU time, in nanoseconds: its last word on how long it was let live.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static long long now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(int count, char **words) {
    long long start = now(CLOCK_MONOTONIC);
    int processes = atoi(words[1]), file = open("beats", O_RDWR | O_CREAT, 0644), number = 0;
    if (ftruncate(file, 4096) < 0)
        return 1;
    volatile long long *beats = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    while (++number < processes && fork() != 0)
        ;
    beats += 3 * (number - 1);
    beats[0] = start;
    for (;;) {
        beats[1] = now(CLOCK_MONOTONIC);
        beats[2] = now(CLOCK_PROCESS_CPUTIME_ID);
    }
}

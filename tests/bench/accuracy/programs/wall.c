// wall MILLISECONDS: sleeps so long, and prints the nanoseconds between its start and its end.
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(int count, char **words) {
    long long start = now();
    struct timespec pause = {atol(words[1]) / 1000, atol(words[1]) % 1000 * 1000000};
    nanosleep(&pause, NULL);
    printf("%lld\n", now() - start);
    return 0;
}

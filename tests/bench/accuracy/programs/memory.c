// memory BYTES: takes so much anonymous memory, writes to every page, and prints how much that was.
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

int main(int count, char **words) {
    long size = atol(words[1]);
    if (size > 0) {
        char *place = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (place == MAP_FAILED)
            return 1;
        for (long i = 0; i < size; i += 4096)
            place[i] = 1;
    }
    printf("%ld\n", size);
    return 0;
}

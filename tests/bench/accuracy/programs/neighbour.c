// neighbour: never ends. Burns its CPU, walks through memory, starts processes and writes to the disk.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SIZE = 64 << 20 };

int main(void) {
    char *place = malloc(SIZE);
    if (fork() == 0)
        for (;;)
            memset(place, rand(), SIZE);
    if (fork() == 0)
        for (;;) {
            if (fork() == 0)
                _exit(0);
            wait(NULL);
        }
    for (;;) {
        int file = open("noise", O_WRONLY | O_CREAT | O_TRUNC, 0600);
        if (write(file, place, 4 << 20) < 0 || fsync(file) < 0)
            return 1;
        close(file);
    }
}

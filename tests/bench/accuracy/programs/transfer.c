// transfer KIND BYTES: writes so many bytes to a file and waits until they are on the disk ("buffered": through the page cache
// and fsync; "direct": past it), or reads them back past the page cache ("read": what it wrote directly). Prints the bytes.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CHUNK = 1 << 20 };

int main(int count, char **words) {
    long size = atol(words[2]);
    int buffered = strcmp(words[1], "buffered") == 0;
    char *chunk = aligned_alloc(4096, CHUNK);
    memset(chunk, 7, CHUNK);
    int file = open("data", O_RDWR | O_CREAT | (buffered ? 0 : O_DIRECT), 0644);
    if (file < 0)
        return 1;
    for (long done = 0; done < size; done += CHUNK)
        if (write(file, chunk, CHUNK) != CHUNK)
            return 2;
    if (fsync(file) < 0)
        return 3;
    if (strcmp(words[1], "read") == 0) {
        lseek(file, 0, SEEK_SET);
        for (long done = 0; done < size; done += CHUNK)
            if (read(file, chunk, CHUNK) != CHUNK)
                return 4;
    }
    printf("%ld\n", size);
    return 0;
}

// about: as many empty files outside of the working folder as there can be
// verdict: limit storage
// limits: {"storage": "8M", "time": "60s"}
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>
int main(void) {
  char name[32];
  for (long i = 0;; i++) { sprintf(name, "/tmp/f%ld", i); int fd = open(name, O_CREAT, 0); if (fd >= 0) close(fd); else usleep(1000); }
}

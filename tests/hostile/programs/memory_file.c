// about: memory in a memfd, which no process maps
// verdict: limit memory
// limits: {"memory": "32M", "time": "30s"}
#define _GNU_SOURCE
#include <sys/mman.h>
#include <unistd.h>
static char block[1 << 20];
int main(void) {
  int fd = memfd_create("hidden", 0);
  for (int i = 0; i < 1000; i++) if (write(fd, block, sizeof block) < 0) return 1;
  return 0;
}

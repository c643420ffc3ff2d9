// about: a file that is neither named nor open, but mapped, and by a child alone
// verdict: limit workspace
// limits: {"workspace": "8M", "time": "60s"}
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
int main(void) {
  int fd = open("big", O_CREAT | O_RDWR, 0600);
  unlink("big");
  ftruncate(fd, 16 << 20);
  if (fork() == 0) {
    char *place = mmap(0, 16 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    memset(place, 1, 16 << 20);
    for (;;) pause();
  }
  close(fd);
  for (;;) pause();
}

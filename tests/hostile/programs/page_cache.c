// about: a file larger than the memory limit goes through the page cache, which is no reason to be killed
// verdict: ok
// limits: {"memory": "16M", "time": "60s", "workspace": "128M"}
#include <fcntl.h>
#include <unistd.h>
static char block[1 << 20];
int main(void) {
  int fd = open("big", O_RDWR | O_CREAT, 0600);
  for (int i = 0; i < 48; i++) if (write(fd, block, sizeof block) != sizeof block) return 1;
  lseek(fd, 0, SEEK_SET);
  while (read(fd, block, sizeof block) > 0) {}
  return unlink("big");
}

// about: files without a name outside of the working folder
// verdict: limit storage
// limits: {"storage": "8M", "workspace": "4M", "time": "60s"}
#include <fcntl.h>
#include <unistd.h>
static char block[1 << 20];
static void hold(const char *name) {
  int fd = open(name, O_CREAT | O_WRONLY, 0600);
  unlink(name);
  for (int i = 0; i < 6; i++) write(fd, block, sizeof block);
}
int main(void) {
  hold("/tmp/big");
  hold("/dev/shm/big");
  for (;;) pause();
}

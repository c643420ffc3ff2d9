// about: fills /tmp
// verdict: limit storage
// limits: {"storage": "8M", "time": "60s"}
#include <fcntl.h>
#include <unistd.h>
static char block[1 << 16];
int main(void) {
  int fd = open("/tmp/big", O_CREAT | O_WRONLY, 0600);
  for (int i = 0; i < 100000; i++) write(fd, block, sizeof block);
  return 0;
}

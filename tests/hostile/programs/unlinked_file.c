// about: fills the disk with files that no folder names any more
// verdict: limit workspace
// limits: {"workspace": "8M", "time": "60s"}
#include <fcntl.h>
#include <unistd.h>
static char block[1 << 20];
int main(void) {
  for (int i = 0; i < 16; i++) {
    int fd = open("big", O_CREAT | O_WRONLY, 0600);
    unlink("big");
    write(fd, block, sizeof block);
  }
  for (;;) pause();
}

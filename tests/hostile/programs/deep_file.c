// about: a large file so deep that nobody would walk there
// verdict: limit workspace
// limits: {"workspace": "16M", "time": "60s"}
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
static char block[1 << 20];
int main(void) {
  for (int i = 0; i < 600; i++) if (mkdir("d", 0700) || chdir("d")) return 1;
  int fd = open("big", O_CREAT | O_WRONLY, 0600);
  for (int i = 0; i < 32; i++) write(fd, block, sizeof block);
  for (;;) pause();
}

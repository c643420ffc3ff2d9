// about: with both limits on disk known, not even one file can grow far beyond them
// verdict: limit workspace
// limits: {"workspace": "8M", "storage": "4M", "time": "60s"}
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>
static char block[1 << 20];
int main(void) {
  signal(SIGXFSZ, SIG_IGN);
  int fd = open("big", O_CREAT | O_WRONLY, 0600);
  for (int i = 0; i < 4096; i++) write(fd, block, sizeof block);
  for (;;) pause();
}

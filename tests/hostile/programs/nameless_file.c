// about: a file that never had a name, in a folder whose path is longer than a path may be
// verdict: limit workspace
// limits: {"workspace": "8M", "time": "60s"}
#define _GNU_SOURCE
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
static char block[1 << 20];
int main(void) {
  char name[251] = {0};
  memset(name, 'n', 250);
  for (int i = 0; i < 20; i++) if (mkdir(name, 0700) || chdir(name)) return 1;
  int fd = open(".", O_TMPFILE | O_WRONLY, 0600);
  if (fd < 0) fd = open("big", O_CREAT | O_WRONLY, 0600), unlink("big"); /* not every file system has such files */
  for (int i = 0; i < 16; i++) write(fd, block, sizeof block);
  for (;;) pause();
}

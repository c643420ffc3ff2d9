// about: files whose paths come ever closer to what a path may be, and go beyond
// verdict: ok
// flags: files_skipped
// collect: **
// limits: {"time": "60s"}
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
int main(void) {
  char name[200] = {0};
  memset(name, 'n', 157);
  for (int i = 0; i < 40; i++) {
    if (mkdir(name, 0700) || chdir(name)) return 1;
    if (close(open("file", O_CREAT | O_WRONLY, 0600))) return 1;
  }
  return 0;
}

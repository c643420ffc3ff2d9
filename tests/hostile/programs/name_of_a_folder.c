// about: leaves files that become a folder of the result and a file of its name, so that one of them has no place
// verdict: ok
// flags: files_skipped
// collect: **
// strip: 1
// limits: {"time": "20s"}
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
int main(void) {
  mkdir("x", 0700), mkdir("x/a", 0700), mkdir("y", 0700);
  close(open("x/a/b", O_CREAT | O_WRONLY, 0600));
  return close(open("y/a", O_CREAT | O_WRONLY, 0600));
}

// about: more files than anybody wants
// verdict: ok
// collect: wanted
// limits: {"time": "60s", "workspace": "1G"}
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>
int main(void) {
  char name[32];
  for (int i = 0; i < 100000; i++) { sprintf(name, "f%d", i); int fd = open(name, O_CREAT, 0); if (fd < 0) return 1; close(fd); }
  return close(open("wanted", O_CREAT | O_WRONLY, 0000));
}

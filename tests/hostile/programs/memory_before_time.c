// about: its memory is over first, and the process that would wait for the end of its time is not the one that is killed
// verdict: limit memory
// limits: {"time": "10s", "memory": "32M"}
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int main(void) {
  if (fork() == 0) for (;;) { char *p = malloc(1 << 20); if (p) memset(p, 1, 1 << 20); }
  for (;;) pause();
}

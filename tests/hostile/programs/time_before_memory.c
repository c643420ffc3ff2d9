// about: would exceed its memory as well, but its time is over first
// verdict: limit time
// limits: {"time": "300ms", "memory": "32M"}
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int main(void) {
  for (int s = 1; s < 65; s++) signal(s, SIG_IGN);
  sleep(5);
  for (;;) { char *p = malloc(1 << 20); if (p) memset(p, 1, 1 << 20); }
}

// about: a moving target: every process forks and leaves, so nobody is there when the killer looks
// verdict: ok
// flags: processes_left?
// limits: {"pids": 64, "time": "2s"}
#include <stdlib.h>
#include <unistd.h>
int main(void) {
  for (int i = 0; i < 8; i++)
    if (fork() == 0) {
      setsid();
      for (;;) if (fork() > 0) _exit(0);
    }
  usleep(200000);
  return 0;
}

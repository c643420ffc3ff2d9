// about: leaves daemons behind that hold its output, ignore signals and left its session
// verdict: ok
// flags: processes_left
// limits: {"time": "20s"}
#include <signal.h>
#include <unistd.h>
int main(void) {
  for (int i = 0; i < 5; i++)
    if (fork() == 0) {
      setsid();
      for (int s = 1; s < 32; s++) signal(s, SIG_IGN);
      if (fork() == 0) for (;;) pause();
      _exit(0);
    }
  usleep(100000);
  return 0;
}

// about: stopped children do not hear
// verdict: limit time
// limits: {"time": "300ms", "pids": 32}
#include <signal.h>
#include <unistd.h>
int main(void) {
  for (int i = 0; i < 10; i++) if (fork() == 0) { setsid(); raise(SIGSTOP); for (;;) {} }
  raise(SIGSTOP);
  return 0;
}

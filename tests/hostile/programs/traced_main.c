// about: asks to be traced by its parent and stops; standing still is no end
// verdict: limit time
// limits: {"time": "300ms"}
#include <signal.h>
#include <sys/ptrace.h>
#include <unistd.h>
int main(void) {
  ptrace(PTRACE_TRACEME, 0, 0, 0);
  raise(SIGUSR1);
  for (;;) pause();
}

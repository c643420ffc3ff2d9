// about: children that stand still for a debugger who does not look
// verdict: limit time
// limits: {"time": "300ms", "pids": 32}
#include <signal.h>
#include <sys/ptrace.h>
#include <unistd.h>
int main(void) {
  for (int i = 0; i < 10; i++) if (fork() == 0) { ptrace(PTRACE_TRACEME, 0, 0, 0); raise(SIGSTOP); for (;;) {} }
  for (;;) pause();
}

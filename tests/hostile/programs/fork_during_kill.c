// about: every process forks as fast as it can and kills its parent, so that the tree moves while it is killed
// verdict: limit time
// limits: {"pids": 128, "time": "500ms", "memory": "256M"}
#include <signal.h>
#include <unistd.h>
int main(void) {
  for (int i = 0; i < 4; i++)
    if (fork() == 0) {
      setsid();
      for (;;) if (fork() == 0 && getppid() != 1) kill(getppid(), SIGKILL);
    }
  for (;;) pause();
}

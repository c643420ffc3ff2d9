// about: a thousand orphans, one after the other: whoever adopts them reaps them, or the limit on processes fills up
// verdict: ok
// limits: {"pids": 16, "time": "60s"}
#include <sys/wait.h>
#include <unistd.h>
int main(void) {
  for (int i = 0; i < 1000; i++) {
    int child = -1;
    for (int tries = 0; child < 0 && tries < 1000; tries++)
      if ((child = fork()) < 0) usleep(1000);
    if (child < 0) return 1;
    if (child == 0) { if (fork() == 0) _exit(0); _exit(0); }
    waitpid(child, 0, 0);
  }
  return 0;
}

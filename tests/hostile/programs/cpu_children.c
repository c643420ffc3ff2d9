// about: many short-lived children use the CPU
// verdict: limit cpu_time
// limits: {"cpu_time": "300ms", "time": "60s"}
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
int main(void) {
  for (;;) {
    if (fork() == 0) { while (clock() < CLOCKS_PER_SEC / 100) {} _exit(0); }
    wait(0);
  }
}

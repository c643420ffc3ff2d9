// about: the child is killed for memory, the parent would end well
// verdict: limit memory
// limits: {"memory": "32M", "time": "30s"}
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
int main(void) {
  if (fork() == 0) for (;;) { char *p = malloc(1 << 20); if (p) memset(p, 1, 1 << 20); }
  wait(0);
  usleep(300000);
  return 0;
}

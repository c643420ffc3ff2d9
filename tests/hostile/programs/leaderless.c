// about: its first thread leaves, and the others go on: to the kernel's kill of a group it looks dead
// verdict: limit time
// limits: {"time": "300ms", "pids": 32}
#include <pthread.h>
#include <unistd.h>
static void *spin(void *unused) { for (;;) {} return unused; }
int main(void) {
  pthread_t thread;
  fork(), fork();
  pthread_create(&thread, 0, spin, 0);
  pthread_exit(0);
}

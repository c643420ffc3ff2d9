// about: leaves a process behind whose first thread is gone, so that it looks dead and is not
// verdict: ok
// flags: processes_left
// limits: {"time": "20s", "pids": 32}
#include <pthread.h>
#include <unistd.h>
static void *spin(void *unused) { for (;;) {} return unused; }
int main(void) {
  pthread_t thread;
  if (fork() == 0) {
    pthread_create(&thread, 0, spin, 0);
    pthread_exit(0);
  }
  usleep(100000);
  return 0;
}

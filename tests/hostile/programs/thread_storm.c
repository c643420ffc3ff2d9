// about: threads that start threads and leave, so that no look at the threads is ever up to date
// verdict: limit time
// limits: {"pids": 64, "time": "500ms", "memory": "256M"}
#include <pthread.h>
#include <unistd.h>
static void *start_two(void *unused) {
  pthread_t thread;
  for (int i = 0; i < 2; i++) if (pthread_create(&thread, 0, start_two, 0) == 0) pthread_detach(thread);
  return unused;
}
int main(void) { for (;;) start_two(0); }

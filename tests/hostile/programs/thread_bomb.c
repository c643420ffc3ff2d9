// about: threads count as processes do
// verdict: failed 3
// flags: pids_failures
// limits: {"pids": 20, "time": "10s", "memory": "256M"}
#include <pthread.h>
#include <unistd.h>
static void *rest(void *unused) { pause(); return unused; }
int main(void) {
  pthread_t thread;
  for (int i = 0; i < 1000; i++) if (pthread_create(&thread, 0, rest, 0)) return i == 19 ? 3 : 4;
  return 0;
}

// about: interrupts itself thousands of times a second; supervision does not slow it and is not disturbed
// verdict: ok
// limits: {"time": "20s"}
#include <signal.h>
#include <sys/time.h>
static volatile int count;
static void tick(int unused) { count += 1 + 0 * unused; }
int main(void) {
  struct itimerval fast = {{0, 500}, {0, 500}};
  signal(SIGALRM, tick);
  setitimer(ITIMER_REAL, &fast, 0);
  while (count < 500) {}
  return 0;
}

// about: ignores what can be ignored and spins
// verdict: limit time
// limits: {"time": "300ms"}
#include <signal.h>
int main(void) { for (int s = 1; s < 65; s++) signal(s, SIG_IGN); for (;;) {} }

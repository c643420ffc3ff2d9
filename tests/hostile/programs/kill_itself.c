// about: signal 9 of its own
// verdict: signaled 137
// limits: {"memory": "32M"}
#include <signal.h>
int main(void) { raise(SIGKILL); }

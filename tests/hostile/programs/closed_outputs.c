// about: closes its outputs and goes on
// verdict: limit time
// limits: {"time": "300ms"}
#include <unistd.h>
int main(void) { for (int i = 0; i < 1024; i++) close(i); for (;;) pause(); }

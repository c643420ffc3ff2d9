// about: forks for ever; no process it makes survives the limit
// verdict: limit time
// limits: {"pids": 64, "time": "500ms", "memory": "256M"}
#include <unistd.h>
int main(void) { for (;;) fork(); }

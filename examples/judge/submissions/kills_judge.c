// Kills whatever it may. The judge is of the same user: this submission ends its own task, and there is no report.
#include <signal.h>

int main(void) {
    kill(-1, SIGKILL);
    return 0;
}

// Answers well, but leaves a daemon that tries to escape from its session and to disturb the tests to come.
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static void ask(const char *verb) {
    struct sockaddr_un address = {AF_UNIX, "/run/kolejka/observer/socket"};
    char text[512];
    int door = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(door, (void *)&address, sizeof address) < 0)
        return;
    int size = snprintf(text, sizeof text,
                        "POST /%s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json; charset=utf-8\r\n"
                        "Content-Length: 2\r\n\r\n{}", verb);
    write(door, text, size);
    read(door, text, sizeof text);
    close(door);
}

int main(void) {
    int ready[2];
    char byte;
    pipe(ready);
    if (fork() == 0) {
        setsid();
        if (fork() == 0) {
            for (int number = 1; number < 65; number++)
                signal(number, SIG_IGN);
            write(ready[1], "!", 1);
            ask("attach"); // into a new session, which is below the one it is in
            ask("open");
            ask("detach");
            for (;;) { // were it alive in the next test, that one would have no CPU and no process left
                fork();
                close(open("/task/was-here", O_CREAT | O_WRONLY, 0600));
            }
        }
        _exit(0);
    }
    read(ready[0], &byte, 1);
    long long sum = 0, number;
    while (scanf("%lld", &number) == 1)
        sum += number;
    printf("%lld\n", sum);
    return 0;
}

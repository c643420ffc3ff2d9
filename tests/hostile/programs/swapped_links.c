// about: leaves folders that became links, links that look like files, and names that hurt
// verdict: ok
// collect: **
// limits: {"time": "20s"}
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
int main(void) {
  mkdir("folder", 0700);
  close(open("folder/file", O_CREAT | O_WRONLY, 0600));
  rename("folder", "aside");
  symlink("/etc", "folder");
  symlink("/proc/self/environ", "environ");
  link("aside/file", "twin");
  mkfifo("fifo", 0600);
  struct sockaddr_un name = {AF_UNIX, "socket"};
  bind(socket(AF_UNIX, SOCK_STREAM, 0), (void *)&name, sizeof name);
  chmod("aside", 0000);
  close(open("-n", O_CREAT | O_WRONLY, 0600));
  close(open("\n", O_CREAT | O_WRONLY, 0600));
  return 0;
}

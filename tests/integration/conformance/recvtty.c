/* runc's recvtty: takes the terminals that are sent to a socket. What they say is thrown away, or with the mode single
 * what the one terminal says goes to standard output.
 *   recvtty [--no-stdin] --pid-file FILE --mode null|single SOCKET
 * One process for each terminal, which ends with the first. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static void drain(int connection, int output) {
  char text[4096];
  union { struct cmsghdr header; char space[CMSG_SPACE(sizeof(int))]; } control;
  struct iovec part = {text, sizeof text};
  struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
  int terminal;
  ssize_t length;
  if (recvmsg(connection, &message, 0) <= 0 || !CMSG_FIRSTHDR(&message)) return;
  memcpy(&terminal, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof terminal);
  while ((length = read(terminal, text, sizeof text)) > 0)
    if (output >= 0 && write(output, text, length) != length) return;
}

int main(int count, char **words) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  int listener = socket(AF_UNIX, SOCK_STREAM, 0);
  const char *path = words[count - 1], *pid_file = NULL;
  int single = 0;
  FILE *file;
  for (int i = 1; i + 1 < count; i++) {
    if (!strcmp(words[i], "--pid-file")) pid_file = words[i + 1];
    if (!strcmp(words[i], "--mode")) single = !strcmp(words[i + 1], "single");
  }
  if (!pid_file || strlen(path) >= sizeof address.sun_path) return 2;
  strcpy(address.sun_path, path);
  if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 16)) return perror(path), 1;
  if (!(file = fopen(pid_file, "w"))) return perror(pid_file), 1;
  fprintf(file, "%d", getpid());
  fclose(file);
  if (single) return drain(accept(listener, NULL, NULL), 1), 0;
  signal(SIGCHLD, SIG_IGN);
  for (;;) {
    int connection = accept(listener, NULL, NULL);
    if (connection >= 0 && fork() == 0) {
      /* The terminals end with recvtty, as they do where one process holds them all. */
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      close(listener);
      drain(connection, -1);
      _exit(0);
    }
    close(connection);
  }
}

/* iobench PATH r|w seq|rand BLOCK COUNT: reads or writes COUNT blocks with O_DIRECT (without it where the
 * file system has none) and prints MB/s and operations a second. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    if (argc != 6)
        return 2;
    int writes = argv[2][0] == 'w', random = argv[3][0] == 'r';
    size_t block = strtoul(argv[4], NULL, 0);
    uint64_t count = strtoull(argv[5], NULL, 0), seed = 88172645463325252ull;
    int flags = writes ? O_RDWR | O_CREAT : O_RDONLY;
    int fd = open(argv[1], flags | O_DIRECT, 0600);
    if (fd < 0)
        fd = open(argv[1], flags, 0600);
    void *buffer;
    if (fd < 0 || posix_memalign(&buffer, 4096, block)) {
        perror(argv[1]);
        return 1;
    }
    memset(buffer, 0x5a, block);
    off_t size = lseek(fd, 0, SEEK_END);
    uint64_t blocks = size > 0 ? (uint64_t)size / block : count;
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (uint64_t i = 0; i < count; i++) {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        off_t at = (off_t)((random ? seed : i) % blocks * block);
        ssize_t n = writes ? pwrite(fd, buffer, block, at) : pread(fd, buffer, block, at);
        if (n != (ssize_t)block) {
            perror("transfer");
            return 1;
        }
    }
    if (writes && fdatasync(fd)) {
        perror("fdatasync");
        return 1;
    }
    clock_gettime(CLOCK_MONOTONIC, &b);
    double s = (double)(b.tv_sec - a.tv_sec) + (double)(b.tv_nsec - a.tv_nsec) / 1e9;
    printf("%.1f MB/s %.0f op/s\n", (double)count * (double)block / s / 1e6, (double)count / s);
    return 0;
}

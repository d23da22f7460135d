/* Owns what /proc and control groups say. */
#include "core/base/limits.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/io.h"

enum { TEXT = 16384, PATH = 4096 };

/* The number after `name` in a text of lines; `none` where there is none. */
static int64_t number_after(const char *text, const char *name, int64_t none)
{
    const char *at = text;
    size_t length = strlen(name);
    for (; at; at = strchr(at, '\n')) {
        at += *at == '\n';
        if (strncmp(at, name, length) == 0) break;
    }
    if (!at) return none;
    char *end;
    long long value = strtoll(at + length, &end, 10);
    return end == at + length ? none : value;
}

static int64_t read_number(const char *folder, const char *name, int64_t none)
{
    char path[PATH], text[TEXT];
    if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path) return none;
    return lsa_file_read_system(text, sizeof text, path) > 0 ? number_after(text, "", none) : none;
}

/* ---- control groups ---- */

/* The process's group in the hierarchy of a version 1 controller, or NULL for that of version 2: its folder, below `top`. */
static int find_group(char *folder, char *top, const char *root, const char *controller)
{
    char text[TEXT], path[PATH];
    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    if (lsa_file_read_system(text, sizeof text, path) <= 0) return 0;
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        char *names = strchr(line, ':'), *group = names ? strchr(++names, ':') : NULL;
        if (!group) continue;
        *group++ = 0;
        int is_v2 = *names == 0, found = controller ? 0 : is_v2;
        for (char *name = names; controller && *name;
             name += strcspn(name, ",") + (strchr(name, ',') != NULL))
            found |= strcspn(name, ",") == strlen(controller) &&
                     strncmp(name, controller, strlen(controller)) == 0;
        if (!found) continue;
        snprintf(top, PATH, "%s/sys/fs/cgroup%s%s", root, controller ? "/" : "",
                 controller ? controller : "");
        return snprintf(folder, PATH, "%s%s", top, strcmp(group, "/") ? group : "") < PATH;
    }
    return 0;
}

/* Goes to the group that this one is in; 0 at the top. */
static int go_up(char *folder, const char *top)
{
    if (strlen(folder) <= strlen(top)) return 0;
    *strrchr(folder, '/') = 0;
    return strlen(folder) >= strlen(top);
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static int64_t quota_processors(int64_t quota, int64_t period)
{
    return quota > 0 && period > 0 ? (quota + period - 1) / period : INT64_MAX;
}

int64_t lsa_limits_processors(const char *root)
{
    char folder[PATH], top[PATH], path[PATH + 16], text[TEXT];
    int64_t n = INT64_MAX;
    if (find_group(folder, top, root, NULL)) do {
            snprintf(path, sizeof path, "%s/cpu.max", folder);
            long long quota, period;
            if (lsa_file_read_system(text, sizeof text, path) > 0 &&
                sscanf(text, "%lld %lld", &quota, &period) == 2)
                n = least(n, quota_processors(quota, period));
        } while (go_up(folder, top));
    if (find_group(folder, top, root, "cpu")) do
            n = least(n, quota_processors(read_number(folder, "cpu.cfs_quota_us", -1),
                                          read_number(folder, "cpu.cfs_period_us", -1)));
        while (go_up(folder, top));
    return n == INT64_MAX ? 0 : n;
}

/* What a group has left of its limit. Pages of files that nobody uses now are given back when memory runs short. */
static int64_t group_memory(const char *folder, const char *limit, const char *usage,
                            const char *inactive)
{
    char path[PATH + 16], text[TEXT];
    int64_t most = read_number(folder, limit, -1), used = read_number(folder, usage, -1);
    if (most < 0 || used < 0) return INT64_MAX;
    snprintf(path, sizeof path, "%s/memory.stat", folder);
    if (lsa_file_read_system(text, sizeof text, path) > 0) used -= number_after(text, inactive, 0);
    return most > used ? most - used : 0;
}

int64_t lsa_limits_memory(const char *root)
{
    char folder[PATH], top[PATH], path[PATH], text[TEXT];
    int64_t bytes = INT64_MAX;
    snprintf(path, sizeof path, "%s/proc/meminfo", root);
    if (lsa_file_read_system(text, sizeof text, path) > 0) {
        int64_t available = number_after(text, "MemAvailable:", -1);
        if (available >= 0) bytes = available * 1024;
    }
    if (find_group(folder, top, root, NULL)) do
            bytes = least(bytes,
                          group_memory(folder, "memory.max", "memory.current", "inactive_file "));
        while (go_up(folder, top));
    if (find_group(folder, top, root, "memory")) do
            bytes = least(bytes, group_memory(folder, "memory.limit_in_bytes",
                                              "memory.usage_in_bytes", "total_inactive_file "));
        while (go_up(folder, top));
    return bytes;
}

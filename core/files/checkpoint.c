/* Owns finding a checkpoint's files and the table of their tensors. */
#include "core/files/checkpoint.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/error.h"
#include "core/base/io.h"
#include "core/base/json.h"
#include "core/base/memory.h"
#include "core/files/safetensors.h"

static const int64_t INDEX_LIMIT = 256 << 20;
enum { MOST_NAME = 512 };

typedef struct shard {
    char *path;
    lsa_safetensors *file;
} shard;

typedef struct row {
    const char *name; /* the file's */
    int32_t shard, place;
} row;

struct lsa_checkpoint {
    char *path;
    shard *shards;
    int64_t shard_count;
    row *rows; /* ordered by name */
    int64_t row_count;
};

static char *join(const char *directory, const char *name)
{
    int64_t room = (int64_t)strlen(directory) + (int64_t)strlen(name) + 2;
    char *path = lsa_alloc(room);
    if (path) snprintf(path, (size_t)room, "%s/%s", directory, name);
    return path;
}

/* Opens `path`, which it takes over, as one more shard. There is room for it. */
static int add_shard(lsa_checkpoint *c, char *path)
{
    lsa_safetensors *file;
    if (!path) return LSA_ENOMEM;
    int rc = lsa_safetensors_open(&file, path);
    if (rc) {
        lsa_free(path);
        return rc;
    }
    c->shards[c->shard_count++] = (shard){path, file};
    return LSA_OK;
}

static int make_room(lsa_checkpoint *c, int64_t shards)
{
    c->shards = lsa_alloc_zero(shards * (int64_t)sizeof *c->shards);
    return c->shards ? LSA_OK : LSA_ENOMEM;
}

static int compare_texts(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The index names files of its own directory: anything else could lead anywhere. */
static int check_shard_name(const lsa_checkpoint *c, const char *tensor, const json_t *value)
{
    char text[160];
    const char *name = json_string_value(value);
    if (name && *name && !strchr(name, '/') && strcmp(name, ".") && strcmp(name, ".."))
        return LSA_OK;
    return lsa_fail(LSA_EFORMAT,
                    "%s: tensor %.300s: its file is %s, a name in this directory is expected",
                    c->path, tensor, lsa_json_show(text, sizeof text, value));
}

/* Opens every file that the map names, once, in the order of the names. */
static int open_shards(lsa_checkpoint *c, const char *directory, const json_t *map)
{
    const char *tensor;
    json_t *value;
    int64_t n = 0;
    int rc = make_room(c, (int64_t)json_object_size(map));
    const char **names = lsa_alloc((int64_t)json_object_size(map) * (int64_t)sizeof *names);
    if (!names && !rc) rc = LSA_ENOMEM;
    if (!rc) json_object_foreach((json_t *)map, tensor, value)
        {
            if ((rc = check_shard_name(c, tensor, value))) break;
            names[n++] = json_string_value(value);
        }
    if (!rc) qsort(names, (size_t)n, sizeof *names, compare_texts);
    for (int64_t i = 0; !rc && i < n; i++)
        if (i == 0 || strcmp(names[i - 1], names[i]) != 0)
            rc = add_shard(c, join(directory, names[i]));
    lsa_free(names);
    return rc;
}

/* Every tensor is where the map says. */
static int check_map(const lsa_checkpoint *c, const char *directory, const json_t *map)
{
    const char *tensor;
    json_t *value;
    int64_t prefix = (int64_t)strlen(directory) + 1;
    json_object_foreach((json_t *)map, tensor, value)
    {
        for (int64_t i = 0; i < c->shard_count; i++) {
            if (strcmp(c->shards[i].path + prefix, json_string_value(value)) != 0) continue;
            if (lsa_safetensors_find(c->shards[i].file, tensor) < 0)
                return lsa_fail(LSA_EFORMAT,
                                "%s: tensor %.300s: is missing, %s says that it is here",
                                c->shards[i].path, tensor, c->path);
        }
    }
    return LSA_OK;
}

static int open_index(lsa_checkpoint *c, const char *directory)
{
    json_t *root;
    int rc = lsa_json_read(&root, c->path, INDEX_LIMIT);
    if (rc) return rc;
    const json_t *map = json_object_get(root, "weight_map");
    if (json_is_object(map)) {
        rc = open_shards(c, directory, map);
        if (!rc) rc = check_map(c, directory, map);
    } else {
        rc = lsa_fail(LSA_EFORMAT, "%s: weight_map is not there, or not an object", c->path);
    }
    json_decref(root);
    return rc;
}

static int compare_rows(const void *a, const void *b)
{
    const row *x = a, *y = b;
    int order = strcmp(x->name, y->name);
    return order ? order : x->shard - y->shard;
}

static int build_rows(lsa_checkpoint *c)
{
    int64_t n = 0;
    for (int64_t i = 0; i < c->shard_count; i++) n += lsa_safetensors_count(c->shards[i].file);
    c->rows = lsa_alloc(n * (int64_t)sizeof *c->rows);
    if (!c->rows) return LSA_ENOMEM;
    for (int64_t i = 0; i < c->shard_count; i++) {
        const lsa_safetensors *file = c->shards[i].file;
        for (int64_t j = 0; j < lsa_safetensors_count(file); j++)
            c->rows[c->row_count++] = (row){lsa_safetensors_name(file, j), (int32_t)i, (int32_t)j};
    }
    qsort(c->rows, (size_t)n, sizeof *c->rows, compare_rows);
    for (int64_t i = 1; i < n; i++)
        if (strcmp(c->rows[i - 1].name, c->rows[i].name) == 0)
            return lsa_fail(LSA_EFORMAT, "%s: tensor %.300s: is in %s too",
                            lsa_checkpoint_file(c, i), c->rows[i].name,
                            lsa_checkpoint_file(c, i - 1));
    return LSA_OK;
}

static int open_files(lsa_checkpoint *c, const char *directory)
{
    c->path = join(directory, "model.safetensors");
    if (!c->path) return LSA_ENOMEM;
    int whole = lsa_file_exists(c->path);
    if (whole < 0) return whole;
    char *index = join(directory, "model.safetensors.index.json");
    if (!index) return LSA_ENOMEM;
    int parts = whole ? 0 : lsa_file_exists(index);
    if (parts > 0) {
        lsa_free(c->path);
        c->path = index;
        return open_index(c, directory);
    }
    lsa_free(index);
    if (parts < 0) return parts;
    if (!whole)
        return lsa_fail(LSA_EIO,
                        "%s: neither model.safetensors nor model.safetensors.index.json is there",
                        directory);
    int rc = make_room(c, 1);
    return rc ? rc : add_shard(c, lsa_strdup(c->path));
}

int lsa_checkpoint_open(lsa_checkpoint **out, const char *directory)
{
    lsa_checkpoint *c = lsa_alloc_zero(sizeof *c);
    if (!c) return LSA_ENOMEM;
    int rc = open_files(c, directory);
    if (!rc) rc = build_rows(c);
    if (rc)
        lsa_checkpoint_close(c);
    else
        *out = c;
    return rc;
}

void lsa_checkpoint_close(lsa_checkpoint *checkpoint)
{
    if (!checkpoint) return;
    for (int64_t i = 0; i < checkpoint->shard_count; i++) {
        lsa_safetensors_close(checkpoint->shards[i].file);
        lsa_free(checkpoint->shards[i].path);
    }
    lsa_free(checkpoint->shards);
    lsa_free(checkpoint->rows);
    lsa_free(checkpoint->path);
    lsa_free(checkpoint);
}

const char *lsa_checkpoint_path(const lsa_checkpoint *checkpoint) { return checkpoint->path; }

static int64_t find_exactly(const lsa_checkpoint *c, const char *name)
{
    int64_t low = 0, high = c->row_count;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        int order = strcmp(c->rows[middle].name, name);
        if (order == 0) return middle;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return -1;
}

int lsa_checkpoint_find(const lsa_checkpoint *checkpoint, int64_t *place, const char *name)
{
    char prefixed[MOST_NAME];
    snprintf(prefixed, sizeof prefixed, "model.%s", name);
    int64_t bare = find_exactly(checkpoint, name), found = find_exactly(checkpoint, prefixed);
    if (bare >= 0 && found >= 0)
        return lsa_fail(LSA_EFORMAT, "%s: tensors %s and %s are the same weight", checkpoint->path,
                        name, prefixed);
    *place = bare >= 0 ? bare : found;
    return LSA_OK;
}

const char *lsa_checkpoint_name(const lsa_checkpoint *checkpoint, int64_t i)
{
    return checkpoint->rows[i].name;
}

const char *lsa_checkpoint_file(const lsa_checkpoint *checkpoint, int64_t i)
{
    return checkpoint->shards[checkpoint->rows[i].shard].path;
}

int lsa_checkpoint_get(const lsa_checkpoint *checkpoint, int64_t i, lsa_tensor **out)
{
    const row *r = &checkpoint->rows[i];
    return lsa_safetensors_get(checkpoint->shards[r->shard].file, r->place, out);
}

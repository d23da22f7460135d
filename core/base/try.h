/* Private: leaves a function with what a call returned, when that is no success. */
#ifndef LSA_TRY_H
#define LSA_TRY_H

#define LSA_TRY(call)                                                                              \
    do {                                                                                           \
        int rc_ = (call);                                                                          \
        if (rc_) return rc_;                                                                       \
    } while (0)

#endif

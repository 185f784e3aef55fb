// SHA-256 of something that arrives in pieces, by OpenSSL.

#ifndef SPANPOOL_EXAMPLES_FILES_SHA256_H_
#define SPANPOOL_EXAMPLES_FILES_SHA256_H_

#include <openssl/evp.h>

#include <cstddef>
#include <memory>
#include <string>

namespace spanpool::demo {

class Sha256 {
 public:
  Sha256() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
    EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr);
  }
  void Add(const void* data, size_t bytes) { EVP_DigestUpdate(context_.get(), data, bytes); }

  // 64 hexadecimal digits. Ends the hash.
  std::string Finish() {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned int length = 0;
    EVP_DigestFinal_ex(context_.get(), digest, &length);
    std::string text;
    for (unsigned int i = 0; i < length; ++i) {
      text += "0123456789abcdef"[digest[i] >> 4];
      text += "0123456789abcdef"[digest[i] & 15];
    }
    return text;
  }

 private:
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

}  // namespace spanpool::demo

#endif  // SPANPOOL_EXAMPLES_FILES_SHA256_H_

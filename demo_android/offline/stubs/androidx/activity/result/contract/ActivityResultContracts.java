package androidx.activity.result.contract;

import android.content.Context;
import android.content.Intent;
import android.net.Uri;
import androidx.activity.result.PickVisualMediaRequest;

public final class ActivityResultContracts {
    public static class TakePicture extends ActivityResultContract<Uri, Boolean> {
        public Intent createIntent(Context context, Uri uri) { return null; }
    }

    public static class PickVisualMedia extends ActivityResultContract<PickVisualMediaRequest, Uri> {
        public interface VisualMediaType {}

        public static final class ImageOnly implements VisualMediaType {
            public static final ImageOnly INSTANCE = null;
        }
    }
}
